"""From the facts of all nodes to findings. Pure: nothing here opens a file or a connection."""
