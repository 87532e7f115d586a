"""Contact sheets and a page that show every method."""
