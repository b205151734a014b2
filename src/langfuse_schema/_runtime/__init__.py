"""Generic: connect, lock, retry, monitor, handle signals. Contains no name of Langfuse."""
