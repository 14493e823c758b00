"""File, folder, array or stream to frames, frames to clips, and drawings back onto frames. Knows no network."""
