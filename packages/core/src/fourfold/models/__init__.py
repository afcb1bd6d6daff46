"""What is known of the models: names, shapes, what a server fuses."""
