"""The HTTP API described: an OpenAPI 3.1 document, and a page on which every endpoint can be tried.

Knows what each endpoint asks for, answers and refuses, in words and schemas. Refuses to know how any of it is done. Begin with `document`, then
`operations` (the endpoints), `fields` (what each field of a request means), `answers` (what comes back). The page is `try.html` with one style
sheet and one module: packages that carry such a page are 3 to 7 MB, for OpenAPI 3.0 or of several years ago (November 2026).
"""
