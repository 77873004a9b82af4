"""Makes proof files from bounds. Nothing here is trusted: the checker judges what comes out."""
