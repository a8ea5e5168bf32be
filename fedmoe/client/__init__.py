"""The client's side of the line: the LightningModule, what it does with a server's order, and what it keeps."""
