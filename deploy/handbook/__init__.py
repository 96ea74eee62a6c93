"""The handbook's card payments: reading them, and the page that shows how they were scored."""
