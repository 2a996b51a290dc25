"""Side-by-side measurements, each a program, with its recorded results."""
