"""Where the files of a packed set are: a folder, or a store from which a node's cache is filled.

    files.py       what readers use: the open tar, the bytes of an index, the manifest
    settings.py    which cache this process uses
    cache.py       the cache's folder: names, locks, what may be deleted
    fetching.py    one file from a store into the cache, whole and verified
    store.py       a store as a flat folder: stream, list, put; by obstore
    sources.py     the clients of the stores, and the words of their errors
    early_reads.py single samples from a store, before their shards are in the cache
    downloader.py  the process of a node that fetches ahead of the readers

Nothing above knows of this package but for `files.files_at`, `settings.use_cache` and the
downloader's start. A local folder without `data.cache` is read as it always was.
"""
