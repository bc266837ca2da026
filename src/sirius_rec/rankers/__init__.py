"""Everything that ranks a slate, behind one protocol."""
