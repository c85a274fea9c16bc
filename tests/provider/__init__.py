"""A frontier provider for tests: a real HTTP server with OpenAI's and Anthropic's formats."""
