"""The composer: music and notes that sound together, synthesised. Imports nothing from outside."""
