"""The tour of all rooms: one command, one page.

Reading order: settings.py (how much), verb.py (the flags), run.py (which job when), jobs.py (what each is), text.py,
together.py, certified.py, decoding.py, serving.py, body.py, clock.py (the jobs), page.py and chapters.py (the page).
Nothing is imported here, so that a report opens without the rooms.
"""
