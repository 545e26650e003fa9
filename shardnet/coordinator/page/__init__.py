"""The web page: what a person sees who opens the coordinator's address in a browser.

Knows how the swarm's state becomes a picture, how figures become charts, who hears of them, and who may make a join token there. Refuses to know how
any of it came about, and how an answer is made: the chat box uses the same HTTP API as everybody. Begin with `endpoints`, then `feed`, `picture` and
`static/main.js` (docs/page.md).
"""
