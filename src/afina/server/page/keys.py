"""A key for the link that is printed at the start: it lives as long as the server and is written nowhere.

The keys in the database are known by their hash alone, so no later start could put one of them into a link.
"""

from __future__ import annotations

import hmac

from afina.server.keys import PREFIX, RANDOM_LENGTH, Keys, digest_of
from afina.server.names import random_text
from afina.server.store import Store


class PageKeys(Keys):
    """page_key: in force besides those of the database, while this object lives."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.page_key = PREFIX + random_text(RANDOM_LENGTH)
        self._page_digest = digest_of(self.page_key)

    def match(self, digest: str) -> bool:
        known = super().match(digest)
        return hmac.compare_digest(digest, self._page_digest) or known
