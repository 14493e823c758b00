"""The synthetic world: textures, scenes, a camera, eighteen motions, and scenes with tracked points."""
