"""What audio files' own bytes say, whatever their names are, and FFmpeg as a second decoder."""
