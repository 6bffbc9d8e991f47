"""How runs start: complete run configurations (`runs/`) and their submission to clusters."""
