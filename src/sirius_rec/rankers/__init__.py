"""Everything that ranks a slate or the catalogue, behind one protocol."""
