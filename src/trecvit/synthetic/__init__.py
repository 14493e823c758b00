"""The synthetic world: surfaces, sprites, scenes, a camera, eighteen motions, and scenes with tracked points."""
