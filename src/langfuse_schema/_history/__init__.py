"""The chain of revisions, and the stored schema after each of them."""
