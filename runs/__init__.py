"""What the doors share: composing a config, building and running it, its folder, its result, its errors."""
