"""nescio in other libraries' terms."""
