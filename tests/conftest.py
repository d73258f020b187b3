"Puts this folder on the path: a test file of any part may say `from draws import normal`."
