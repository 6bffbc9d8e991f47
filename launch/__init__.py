"""How runs start: complete run configurations (`runs/`) and what brings them to machines."""
