"""Tools for the catalogue's labels: annotation page, control probe, agreement, import."""
