"""The deployed system: containers of the images, driven from outside."""
