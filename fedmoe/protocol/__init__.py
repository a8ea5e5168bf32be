"""What crosses the line between server and client, and the base of every method. Read this first."""
