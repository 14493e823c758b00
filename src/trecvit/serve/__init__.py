"""A server for many live streams, and its pages (the extra `serve`)."""
