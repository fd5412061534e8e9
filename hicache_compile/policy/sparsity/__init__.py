"""How sparse computed steps are: settings of Chipmunk."""
