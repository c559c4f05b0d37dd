"""Which of the defective images among the good ones are listed, and what leaving them out gains."""
