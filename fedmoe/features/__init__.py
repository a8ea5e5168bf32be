"""Image features: extraction, cache, views, and what each client owns of them."""
