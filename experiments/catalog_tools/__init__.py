"""Tools that made the catalogue's labels: annotation page, control probe, agreement, RetroAct import."""
