"""The demo: the main job on a real filesystem, told in about a minute, and proved at the end."""
