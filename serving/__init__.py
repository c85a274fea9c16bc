"""The online flow: narrow tasks answered over HTTP by models on the user's own machines."""
