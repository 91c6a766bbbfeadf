"""What Afina is measured against, each rival as its users would write it."""
