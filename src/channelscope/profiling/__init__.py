"""The one pass over the calibration images, and the profile file it is stored in."""
