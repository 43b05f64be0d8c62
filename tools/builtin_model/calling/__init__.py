"""Chats with tools to train on: tools of many names, what they are asked, their calls, results and answers."""
