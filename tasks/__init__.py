"""Methods: one folder for each family; what several families use is in shared/."""
