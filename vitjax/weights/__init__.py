"""Official parameter names and layouts, into ours and back."""
