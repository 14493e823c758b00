"""What TRecViT is compared with, built from the libraries that people have."""
