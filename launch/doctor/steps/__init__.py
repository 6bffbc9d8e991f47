"""What is measured on a node. Each module has `run(request)`: see `launch.doctor.node.Request`."""
