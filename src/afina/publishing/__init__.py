"""Publications: what of a run leaves this machine, as one set of files for a folder or the Hugging Face Hub.

Comes in: a run, a specialist, or a catalogue's shards. Goes out: a folder of files with their hashes, the same ones
wherever they go. What a model or a catalogue is good for is not known here.
"""

from afina.publishing.files import Publication, PublishedFile
from afina.publishing.push import Pushed, PushRequest, push
from afina.publishing.target import PublishError

__all__ = ["Publication", "PublishError", "PublishedFile", "PushRequest", "Pushed", "push"]
