"""Prompts by template: `Describe this {{ kind }}: {{ name }}`, filled in with the fields of each row."""

import functools

_TOLD = 20  # fields that an error names


class Template:
    """A Jinja template in its sandbox. A field that a row does not have is an error, never an empty place.

    Raises ValueError for a template that cannot be read. Picklable: only its text travels.
    """

    def __init__(self, text: str):
        self.text = text.strip()
        if not self.text:
            raise ValueError("the prompt is empty: say what you want to know, for example 'Describe the image.'")
        _compiled(self.text)

    def fill(self, fields: dict) -> str:
        """The prompt of a row. Raises ValueError if it lacks a field, or if nothing is left."""
        import jinja2

        try:
            prompt = _compiled(self.text).render(fields).strip()
        except jinja2.UndefinedError as error:
            known = ", ".join([*list(fields)[:_TOLD], *(["..."] if len(fields) > _TOLD else [])]) or "none"
            raise ValueError(f"the prompt needs a field that is not there ({error}); there are: {known}") from None
        except Exception as error:  # a template is a program: it may divide by zero
            raise ValueError(f"the prompt cannot be filled in: {error}") from None
        if not prompt:
            raise ValueError("the prompt is empty once it is filled in")
        return prompt


@functools.cache
def _compiled(text: str):
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined)
    try:
        return environment.from_string(text)
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(f"the prompt is no template that can be read, line {error.lineno}: {error.message}") from None
