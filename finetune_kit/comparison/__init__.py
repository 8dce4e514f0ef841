"""Many runs side by side: planned, carried out, tested against each other, tabulated."""
