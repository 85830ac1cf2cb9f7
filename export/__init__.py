"""A trained grade becomes a bundle: graphs, entity vectors and a manifest, compared with torch before it counts."""
