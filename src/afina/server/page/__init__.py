"""The page of `afina serve`: static files, the runs that it was given, and the few endpoints that only the page needs.

static/     HTML, CSS and ES modules as they are sent; no build step, nothing from elsewhere (docs/page.md)
files.py    sends them, and opened reports, to whoever asks; no key
runs.py     the run folders of the command line: their names, what they can do, who answers
turn.py     one question at a time
api.py      /afina/api/models, runs, predict, reports; asking with sources is `server/ask.py`
keys.py     a key for the link that is printed at the start
"""
