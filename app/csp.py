"""Tells the browser to fetch nothing but from this server: even text that escaped our escaping leaks nothing."""

POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; "  # Gradio's own scripts are inline
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)


class ContentSecurityPolicy:
    """ASGI middleware that adds the policy to every answer."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        async def send_with_policy(message):
            if message["type"] == "http.response.start":
                headers = [*message["headers"], (b"content-security-policy", POLICY.encode())]
                message = message | {"headers": headers}
            await send(message)

        await self.app(scope, receive, send_with_policy)
