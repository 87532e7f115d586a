"""Charts, and the pictures of help pages and templates."""
