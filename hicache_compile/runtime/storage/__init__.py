"""Where anchors live, and how they are handed to programs."""
