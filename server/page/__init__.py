"""The live page: what a browser shows at the server's address. Static files, without a build step."""
