"""What a step costs on machines that are not here: compiled memory, operations, exchanges."""
