"""Where clips come from: synthetic worlds, and the names of the classes of real data sets."""
